// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AdapterFactoryViews} from "./AdapterFactoryViews.sol";
import {Certificates} from "./Certificates.sol";

/// @title AdapterFactory, as it stands in the genesis state
/// @notice What each function does is said in IAdapterFactory.sol.
/// @dev No constructor and no immutables: a predeploy is bare runtime code. Everywhere: checks, then state, then
///      event; no call ever leaves the contract.
contract AdapterFactory is AdapterFactoryViews {
    uint256 private constant TEXT_MAX = 64;
    uint256 private constant URI_MAX = 256;
    uint256 private constant RANK_MAX = 64;
    uint256 private constant DEPTH_MAX = 16;
    uint256 private constant UPDATES_MAX = 64; // 64 new versions take about 4 million gas: fits any block
    uint256 private constant VALIDATORS_MAX = 256; // the signers are the bits of one word
    uint256 private constant WEIGHTS_MIN = 64; // longer than any text or binary form of a CID: a typo is no weights
    uint256 private constant WEIGHTS_MAX = 96 * 1024; // nodes refuse transactions above 128 KiB
    uint256 private constant CID_LENGTH = 36;
    uint256 private constant CID_AND_SIZE_LENGTH = 44;
    uint8 private constant CODEC_RAW = 0x55;
    uint8 private constant CODEC_DAG_PB = 0x70;

    // ------------------------------------------------------------------------------------------- base models

    function registerBaseModel(
        bytes32 baseModelId,
        string calldata name,
        string calldata uri,
        string calldata licence,
        uint64 sizeBytes
    ) external override {
        if (baseModelId == 0) revert ZeroBaseModelId();
        BaseModelRow storage row = _baseModels[baseModelId];
        if (row.place != 0) revert BaseModelExists(baseModelId);
        _requireText("name", name, 1, TEXT_MAX);
        _requireText("uri", uri, 0, URI_MAX);
        _requireText("licence", licence, 1, TEXT_MAX);
        if (sizeBytes == 0) revert ZeroSize();

        _baseModelIds.push(baseModelId);
        row.registrar = msg.sender;
        row.sizeBytes = sizeBytes;
        row.place = uint32(_baseModelIds.length);
        row.name = name;
        row.uri = uri;
        row.licence = licence;
        emit BaseModelRegistered(baseModelId, msg.sender, name, uri, licence, sizeBytes);
    }

    // ---------------------------------------------------------------------------------------------- adapters

    function createAdapter(bytes32 baseModelId, string calldata name, bytes calldata adapterWeights, uint256 rank)
        external
        override
        returns (bytes32 adapterId)
    {
        if (baseModelId == 0) revert ZeroBaseModelId();
        uint32 place = _baseModels[baseModelId].place;
        if (place == 0) revert UnknownBaseModel(baseModelId);
        _requireText("name", name, 1, TEXT_MAX);
        if (rank == 0 || rank > RANK_MAX) revert RankOutOfRange(rank, 1, RANK_MAX);
        VersionRow memory first = _readWeights(adapterWeights);

        adapterId = keccak256(
            abi.encode(
                "created",
                block.chainid,
                address(this),
                msg.sender,
                baseModelId,
                keccak256(bytes(name)),
                first.weightsHash,
                first.codec,
                first.sizeBytes,
                rank
            )
        );
        _addAdapter(adapterId, place, uint8(rank), 0, 0);
        _adapters[adapterId].name = name;
        emit AdapterCreated(
            adapterId, baseModelId, msg.sender, name, uint8(rank), adapterWeights.length > CID_AND_SIZE_LENGTH
        );
        _addVersion(adapterId, _adapters[adapterId], 1, first, msg.sender);
    }

    function composeAdapters(bytes32 adapterA, bytes32 adapterB, uint256 weightA, uint256 weightB)
        external
        override
        returns (bytes32 adapterId)
    {
        AdapterRow storage a = _existing(adapterA);
        AdapterRow storage b = _existing(adapterB);
        if (adapterA == adapterB) revert SelfComposition(adapterA);
        if (weightA == 0 || weightA >= 100 || weightB != 100 - weightA) revert WeightsMustSumTo100(weightA, weightB);
        uint32 place = a.baseModelPlace;
        if (place != b.baseModelPlace) {
            revert BaseModelsDiffer(_baseModelIds[place - 1], _baseModelIds[b.baseModelPlace - 1]);
        }
        ParentsRow memory parents = ParentsRow(adapterA, adapterB, a.versionCount, b.versionCount);
        if (parents.versionA == 0) revert NotYetCertified(adapterA);
        if (parents.versionB == 0) revert NotYetCertified(adapterB);
        uint256 depth = 1 + (a.depth > b.depth ? a.depth : b.depth);
        if (depth > DEPTH_MAX) revert DepthLimit(depth, DEPTH_MAX);
        uint256 rank = uint256(a.rank) + b.rank;
        if (rank > RANK_MAX) rank = RANK_MAX;

        adapterId = keccak256(
            abi.encode("composed", block.chainid, address(this), msg.sender, parents, weightA)
        );
        _addAdapter(adapterId, place, uint8(rank), uint8(depth), uint8(weightA));
        _parents[adapterId] = parents;
        emit AdapterComposed(
            adapterId,
            adapterA,
            adapterB,
            msg.sender,
            parents.versionA,
            parents.versionB,
            uint8(weightA),
            uint8(weightB),
            uint8(rank),
            uint8(depth)
        );
    }

    function publishVersion(bytes32 adapterId, bytes calldata adapterWeights)
        external
        override
        returns (uint32 number)
    {
        AdapterRow storage row = _owned(adapterId);
        uint64 until = _mentorshipUntil(adapterId, row);
        if (until > _lastCheckpoint) revert OpenToMentorship(adapterId, until);
        number = row.versionCount + 1;
        if (number == 1) revert NotYetCertified(adapterId);
        if (msg.sender != row.creator) _publishers[adapterId][number] = msg.sender;
        _addVersion(adapterId, row, number, _readWeights(adapterWeights), msg.sender);
    }

    function openToMentorship(bytes32 adapterId) external override {
        _owned(adapterId).mentorship = Mentorship.Open;
        emit MentorshipChanged(adapterId, type(uint64).max);
    }

    function closeMentorship(bytes32 adapterId) external override {
        AdapterRow storage row = _owned(adapterId);
        if (row.mentorship != Mentorship.Open) return;
        uint64 until = _lastCheckpoint + 1;
        row.mentorship = Mentorship.Ending;
        _mentorshipEnds[adapterId] = until;
        emit MentorshipChanged(adapterId, until);
    }

    function transferOwnership(bytes32 adapterId, address newOwner) external override {
        _owned(adapterId);
        _pendingOwners[adapterId] = newOwner;
        emit OwnershipOffered(adapterId, msg.sender, newOwner);
    }

    function acceptOwnership(bytes32 adapterId) external override {
        AdapterRow storage row = _existing(adapterId);
        address pending = _pendingOwners[adapterId];
        if (msg.sender != pending) revert NotPendingOwner(adapterId, pending, msg.sender);
        address previous = _ownerOf(adapterId, row);
        delete _pendingOwners[adapterId];
        _newOwners[adapterId] = msg.sender;
        emit OwnershipTransferred(adapterId, previous, msg.sender);
    }

    // ------------------------------------------------------------------------------------------- checkpoints

    function commitCheckpoint(
        Commitment calldata commitment,
        Quorum calldata quorum,
        Validator[] calldata nextValidators
    ) external override {
        uint64 number = commitment.number;
        uint64 last = _lastCheckpoint;
        if (number <= last) revert AlreadyCommitted(number);
        if (number != last + 1) revert NotNextCheckpoint(number, last + 1);
        bytes32 parent = _checkpoints[last].recordHash;
        if (commitment.parentRecordHash != parent) revert ParentMismatch(commitment.parentRecordHash, parent);
        if (commitment.recordHash == 0) revert ZeroRecordHash();
        CertifiedUpdate[] calldata updates = commitment.updates;
        if (updates.length > UPDATES_MAX) revert TooManyUpdates(updates.length, UPDATES_MAX);
        bytes32 setHash = _setHash;
        (uint256 signedStake, uint256 totalStake) =
            Certificates.requireQuorum(quorum, setHash, Certificates.digest(commitment, updates, setHash));

        _lastCheckpoint = number;
        _checkpoints[number] = CheckpointRow(
            commitment.recordHash,
            uint64(block.number),
            uint64(block.timestamp),
            commitment.round,
            uint16(updates.length)
        );
        emit CheckpointCommitted(
            number, commitment.recordHash, commitment.round, signedStake, totalStake
        );
        _applyUpdates(number, updates);
        _changeValidators(number, setHash, commitment.nextValidatorSetHash, nextValidators);
    }

    function reportEquivocation(uint256 seat, Vote calldata first, Vote calldata second) external override {
        if (seat >= _validators.length) revert NotAValidator(seat, address(0));
        address account = _validators[seat].account;
        if (_equivocations[account] != 0) revert AlreadyRecorded(account);
        bytes32 firstDigest = Certificates.digest(first);
        bytes32 secondDigest = Certificates.digest(second);
        // The same parent: a vote for this number in another network, which has other records, is no evidence.
        if (
            firstDigest == secondDigest || first.number == 0 || first.number != second.number
                || first.round != second.round || first.parentRecordHash != second.parentRecordHash
        ) revert NotEquivocation();
        Certificates.requireSigner(firstDigest, first.signature, account);
        Certificates.requireSigner(secondDigest, second.signature, account);

        _equivocations[account] = first.number;
        uint64 due = _exclusionDueFrom;
        if (due == 0) {
            due = _lastCheckpoint + 2;
            _exclusionDueFrom = due;
        }
        emit EquivocationRecorded(account, first.number, first.round, firstDigest, secondDigest, due);
    }

    function _applyUpdates(uint64 number, CertifiedUpdate[] calldata updates) private {
        bytes32 before = 0;
        for (uint256 i = 0; i < updates.length; ++i) {
            CertifiedUpdate calldata update = updates[i];
            bytes32 id = update.adapterId;
            if (id <= before) revert UpdatesNotAscending(id);
            before = id;
            AdapterRow storage row = _existing(id);
            uint32 count = row.versionCount;
            if (count != 0) {
                uint64 until = _mentorshipUntil(id, row);
                if (until < number) revert ClosedToMentorship(id, until, number);
            }
            _requireCodec(update.codec);
            if (update.sizeBytes == 0) revert ZeroSize();
            if (update.accuracyPpm == ACCURACY_UNKNOWN) revert AccuracyMissing(id);
            VersionRow memory next = VersionRow(
                update.weightsHash,
                number,
                update.sizeBytes,
                update.accuracyPpm,
                uint48(block.number),
                update.codec
            );
            _addVersion(id, row, count + 1, next, row.creator);
        }
    }

    /// @dev Until `_exclusionDueFrom` a set may still hold equivocators: it may have been certified before they
    ///      were reported. From then on every certificate must leave a set without them.
    function _changeValidators(uint64 number, bytes32 setHash, bytes32 nextHash, Validator[] calldata next) private {
        uint64 due = _exclusionDueFrom;
        bool mustExclude = due != 0 && number >= due;
        if (nextHash == setHash) {
            if (mustExclude) revert ExclusionDue(number, due);
            if (next.length != 0) revert NextSetMismatch(_hashOf(next), setHash);
            return;
        }
        if (next.length == 0 || next.length > VALIDATORS_MAX) revert ValidatorCount(next.length, VALIDATORS_MAX);
        bytes32 given = _hashOf(next);
        if (given != nextHash) revert NextSetMismatch(given, nextHash);
        bool clean = _checkSet(next, due != 0 && !mustExclude);

        _storeSet(next);
        _setHash = nextHash;
        if (due != 0 && clean) _exclusionDueFrom = 0;
        emit ValidatorsChanged(number, nextHash, next.length);
    }

    function _checkSet(Validator[] calldata next, bool spareEquivocators) private view returns (bool clean) {
        clean = true;
        address before = address(0);
        for (uint256 i = 0; i < next.length; ++i) {
            address account = next[i].account;
            if (account <= before) revert ValidatorsNotAscending(account);
            before = account;
            if (next[i].stake == 0) revert ZeroStake(account);
            if (_equivocations[account] != 0) {
                if (!spareEquivocators) revert EquivocatorInSet(account);
                clean = false;
            }
        }
    }

    /// @dev Writes only what differs: a set of a hundred where one stake moved costs one word, not two hundred.
    function _storeSet(Validator[] calldata next) private {
        while (_validators.length > next.length) _validators.pop();
        for (uint256 i = 0; i < next.length; ++i) {
            if (i == _validators.length) {
                _validators.push(next[i]);
                continue;
            }
            Validator storage seat = _validators[i];
            if (seat.nodeKey != next[i].nodeKey) seat.nodeKey = next[i].nodeKey;
            if (seat.account != next[i].account || seat.stake != next[i].stake) {
                seat.account = next[i].account;
                seat.stake = next[i].stake;
            }
        }
    }

    function _hashOf(Validator[] calldata set) private pure returns (bytes32) {
        bytes32[] memory seats = new bytes32[](set.length);
        bytes32[] memory keys = new bytes32[](set.length);
        for (uint256 i = 0; i < set.length; ++i) {
            seats[i] = bytes32((uint256(uint160(set[i].account)) << 96) | set[i].stake);
            keys[i] = set[i].nodeKey;
        }
        return keccak256(abi.encode(keccak256(abi.encodePacked(seats)), keccak256(abi.encodePacked(keys))));
    }

    // ------------------------------------------------------------------------------------------ rows, checks

    function _addAdapter(bytes32 id, uint32 place, uint8 rank, uint8 depth, uint8 weightA) private {
        AdapterRow storage row = _adapters[id];
        if (row.creator != address(0)) revert AdapterExists(id);
        row.creator = msg.sender;
        row.baseModelPlace = place;
        row.rank = rank;
        row.depth = depth;
        row.weightA = weightA;
        _adapterIds.push(id);
    }

    function _addVersion(bytes32 id, AdapterRow storage row, uint32 number, VersionRow memory next, address creator)
        private
    {
        row.versionCount = number;
        _versions[id][number] = next;
        emit VersionAdded(
            id, next.checkpoint, number, next.weightsHash, next.codec, next.sizeBytes, next.accuracyPpm, creator
        );
    }

    /// @dev The three forms that the manual calls PASSING WEIGHTS.
    function _readWeights(bytes calldata given) private view returns (VersionRow memory row) {
        uint256 length = given.length;
        row.accuracyPpm = ACCURACY_UNKNOWN;
        row.blockNumber = uint48(block.number);
        if (length == CID_LENGTH || length == CID_AND_SIZE_LENGTH) {
            if (given[0] != 0x01 || given[2] != 0x12 || given[3] != 0x20) revert NotWeightsNorCid(length);
            row.codec = uint8(given[1]);
            _requireCodec(row.codec);
            row.weightsHash = bytes32(given[4:CID_LENGTH]);
            if (length == CID_AND_SIZE_LENGTH) row.sizeBytes = uint64(bytes8(given[CID_LENGTH:]));
        } else {
            if (length < WEIGHTS_MIN) revert NotWeightsNorCid(length);
            if (length > WEIGHTS_MAX) revert WeightsTooLarge(length, WEIGHTS_MAX);
            row.weightsHash = sha256(given);
            row.codec = CODEC_RAW;
            row.sizeBytes = uint64(length);
        }
    }

    function _requireCodec(uint8 codec) private pure {
        if (codec != CODEC_RAW && codec != CODEC_DAG_PB) revert UnsupportedCodec(codec);
    }

    function _requireText(string memory field, string calldata text, uint256 min, uint256 max) private pure {
        uint256 length = bytes(text).length;
        if (length < min || length > max) revert TextLength(field, length, min, max);
    }

    function _owned(bytes32 id) private view returns (AdapterRow storage row) {
        row = _existing(id);
        address owner = _ownerOf(id, row);
        if (msg.sender != owner) revert NotOwner(id, owner, msg.sender);
    }
}
